"""Layout: operations that move, join, cut, pad or copy axes and channels, without arithmetic."""
