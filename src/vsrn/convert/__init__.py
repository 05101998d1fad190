"""What was published in 2018 to 2021, read safely and turned into our models."""
