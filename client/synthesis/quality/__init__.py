"""How good synthetic images are, and whose they resemble.

Every figure here but the grid of pictures is derived from patients and stays at the site; see
`client.synthesis.quality.answer` for what may leave.
"""
