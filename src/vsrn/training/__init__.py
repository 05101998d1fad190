"""From a split and a config to a trained run."""
