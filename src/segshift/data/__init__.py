"""Data sets: label spaces, layouts, frames, transforms and training samples."""
