"""Adapts semantic segmentation networks to a new domain without target labels."""
