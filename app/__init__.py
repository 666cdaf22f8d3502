"""The faces of epplan: the command line and the what-if app. Nothing imports this package."""
