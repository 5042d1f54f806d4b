package cli

import (
	"github.com/spf13/cobra"

	"github.com/databox-lockbox/lockbox/simulator/image"
)

func imageInspectCommand() *cobra.Command {
	var out output
	c := &cobra.Command{
		Use:   "inspect IMAGE",
		Short: "Show what a volume tells without a key",
		Long: `Show what a volume tells without a key: its names, method, protectors, and where its metadata are.

Nothing of it is authenticated; 'verify' with a key checks that. A volume that is refused is shown too, with the reason,
and exit status 0, as long as it tells anything; one whose metadata copies are damaged as long as one is whole.`,
		Args: oneImage,
		RunE: func(c *cobra.Command, args []string) error {
			if err := out.check(); err != nil {
				return err
			}
			info, err := image.Inspect(args[0])
			if err != nil {
				return volumeError{err}
			}
			v := newVolumeView(args[0], info)
			return out.print(c.OutOrStdout(), v, v.text)
		},
	}
	out.flags(c)
	return c
}
