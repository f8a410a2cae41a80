"""Barlow Dreamer: a world model without a decoder, and a policy that learns in its dreams."""
