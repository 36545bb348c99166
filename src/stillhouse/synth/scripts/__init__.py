"""Scripts for `teachers.scripted.Scripted`: what stands in for a language model where everything else is to be checked."""
