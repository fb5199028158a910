"""Norms and scales that the parts in front of them, or the layers behind them, take: where each may go, all or none."""
