"""What ships in a user's pickle: derived classes, methods, guards, gates, markers, originals; stable names."""
