"""From photos to region features, and where those live on disk."""
