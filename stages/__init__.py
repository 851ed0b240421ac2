"""The recipe's code: modules here are run (`python -m stages.NAME`), packages here are imported."""
