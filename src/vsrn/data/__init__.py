"""What lies on disk: photos, captions, vocabularies, region stores and splits. Nothing here imports torch."""
