"""What a site's engineer should know of a study before anything is trained on it.

Everything here is derived from patients and stays at the site. Images are named by row only.
"""
