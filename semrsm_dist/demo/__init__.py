"""Generated scenes and a small trained network: what `semrsm demo` runs on, offline."""
