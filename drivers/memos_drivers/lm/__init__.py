"""Language models as the drivers see them: where they are, what they are, how texts become token ids and caches."""
