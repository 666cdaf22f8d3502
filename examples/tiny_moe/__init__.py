"""A tiny Mixture-of-Experts language model, and the text that it learns."""
