"""The service's own page: `home` holds what a browser is sent, `serving` sends it."""
