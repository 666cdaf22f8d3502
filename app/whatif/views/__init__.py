"""The pages of the what-if app, one script each; `app.whatif.main` lists them."""
