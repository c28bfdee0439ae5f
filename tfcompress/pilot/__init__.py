"""The pilot: tries recipes on a model until a file keeps within budgets, `tfcompress auto`."""
