"""Gin's texts, read without gin."""
