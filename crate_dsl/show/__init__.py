"""Renderings of what lies between a spec and its ONNX file, each a function from frozen data to text."""
