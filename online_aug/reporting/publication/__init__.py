"""A finished run for others: its model card, and the places it is published to."""
