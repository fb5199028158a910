"""What decides beside arguments and attributes: values of classes, functions that attributes hold."""
