"""The commands; each parses, checks, and calls the layers below."""
