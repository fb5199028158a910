"""Surgery: where each layer goes, what it absorbs, which methods are written anew; and writing it."""
