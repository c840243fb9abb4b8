"""The commands; each parses, checks, and hands over to the layers below."""
