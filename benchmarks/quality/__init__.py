"""How good plans are: cases that run on their own and are kept, and the page that shows them (docs/quality.md)."""
