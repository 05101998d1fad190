"""From a trained run to embeddings."""
