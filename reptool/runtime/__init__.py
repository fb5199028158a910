"""What ships in a user's pickle: derived classes, methods, guards, kept originals, hooks; under names that stay."""
