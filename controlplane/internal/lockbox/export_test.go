package lockbox

import "context"

// FireDue fires what is due until nothing is.
func (s *Service) FireDue(ctx context.Context) error {
	for {
		pause, err := s.fireDue(ctx)
		if err != nil || pause > 0 {
			return err
		}
	}
}
