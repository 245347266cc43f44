/**
 * The program of the process that reads media for the fill of a volume.
 *
 * It runs at lower priority than the server, so that clients come first. Signals reach the whole process group; the
 * parent decides what they mean. When the parent goes, so does it.
 */

import { constants, setPriority } from 'node:os';
import { runMediumFeed } from '../daemon/index.ts';
import { EXIT } from './exit.ts';
import { inputsAt } from './media-places.ts';

process.on('SIGINT', () => undefined);
process.on('SIGTERM', () => undefined);
process.on('disconnect', () => process.exit(EXIT.operatingError));
try {
  setPriority(constants.priority.PRIORITY_BELOW_NORMAL);
} catch {
  // Without the permission it merely competes with the server.
}

await runMediumFeed({
  send: (message) =>
    new Promise((resolve) => {
      // A message that cannot be sent has lost its parent, and `disconnect` follows.
      process.send?.(message, undefined, {}, () => resolve());
    }),
  onMessage: (listener) => process.on('message', listener),
  openMedia: ({ places, load }, warn) =>
    inputsAt({ signal: new AbortController().signal, output: { warn } }, places, { load }),
});
process.exit(EXIT.done);
