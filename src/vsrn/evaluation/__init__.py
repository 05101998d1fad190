"""From embeddings to Recall@K and a report."""
