/**
 * The program of a session's child process: reads, compresses and stores what one backup session saves.
 *
 * It runs at lower priority than the server, so that clients come first. Ctrl-C reaches the whole process
 * group; the parent decides what it means, and tells. When the parent goes, so does the child: a session has
 * no meaning without its volume.
 */

import { constants, setPriority } from 'node:os';
import { runWorker } from '../backup/index.ts';
import { EXIT } from './exit.ts';
import { lanePath } from './worker-path.ts';

process.on('SIGINT', () => undefined);
process.on('disconnect', () => process.exit(EXIT.operatingError));
try {
  setPriority(constants.priority.PRIORITY_BELOW_NORMAL);
} catch {
  // Without the permission the session merely competes with the server.
}

await runWorker(
  {
    send: (message) =>
      new Promise((resolve) => {
        // A message that cannot be sent has lost its parent, and `disconnect` follows.
        process.send?.(message, undefined, {}, () => resolve());
      }),
    onMessage: (listener) => process.on('message', listener),
  },
  { laneProgram: lanePath() },
);
process.exit(EXIT.done);
