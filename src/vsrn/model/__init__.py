"""The models and their losses: plain torch modules, no files, no command line."""
