"""What each kind of block says about the convolutions that it can stand for."""
