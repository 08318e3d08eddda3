"""The plaintext form: lexical and dense index, index segments, and fusion of texts."""
