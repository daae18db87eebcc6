"""The one trainer: recipes say what to train, this package how."""
