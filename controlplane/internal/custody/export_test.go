package custody

// AssociatedData is what the key of a disk is bound to.
var AssociatedData = associatedData
