"""Images and LUKS headers on devices of other machines, named by their places."""
