"""The models and their losses as plain torch modules, and the files that hold their weights."""
