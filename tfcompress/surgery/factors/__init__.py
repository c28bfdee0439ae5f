"""Layers replaced by several smaller ones of low rank or of a structure."""
