"""The report's sections: what each template is given, made from records; one module per section."""
