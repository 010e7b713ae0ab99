"""Founding a consortium: certificates, invitations, and what runs at the server."""
