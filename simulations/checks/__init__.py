"""What a site's data are like, before anything is trained."""
