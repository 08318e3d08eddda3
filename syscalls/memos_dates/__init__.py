"""What words of time mean: for readers of files, and for the search that is asked "what did I buy last Tuesday?"."""
