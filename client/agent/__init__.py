"""The site agent: the hospital's own process around `client.site`, its policy and its log."""
