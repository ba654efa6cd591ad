"""The embedded town: street scenes with depth, their weather, and the published layouts they are
written in."""
