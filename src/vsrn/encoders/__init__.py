"""Models at work: captions, regions or photos in, vectors, captions and explanations out; by torch or onnxruntime."""
