"""Texts as tokens: vocabularies, templates, chats."""
