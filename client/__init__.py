"""The only code that sees a patient: data, private training, the site."""
