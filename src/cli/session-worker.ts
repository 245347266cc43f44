/**
 * The program of a session's child process: reads, compresses and stores what one backup session saves.
 *
 * It runs at lower priority than the server, so that clients come first. Ctrl-C reaches the whole process
 * group; the parent decides what it means, and tells. When the parent goes, so does the child: a session has
 * no meaning without its volume.
 */

import { constants, setPriority } from 'node:os';
import { type MediumTarget, runWorker } from '../backup/index.ts';
import type { OpenOutput } from '../media/index.ts';
import { EXIT } from './exit.ts';
import { lanePath } from './worker-path.ts';

process.on('SIGINT', () => undefined);
process.on('disconnect', () => process.exit(EXIT.operatingError));
try {
  setPriority(constants.priority.PRIORITY_BELOW_NORMAL);
} catch {
  // Without the permission the session merely competes with the server.
}

/** What is needed to load media is read only where there are some. */
function openMedia({ place, load, overwrite = false }: MediumTarget, signal: AbortSignal): OpenOutput {
  return async (wanted) => {
    const { outputsAt } = await import('./media-places.ts');
    return await outputsAt({ signal }, [place], { load, overwrite })(wanted);
  };
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
  { laneProgram: lanePath(), openMedia },
);
process.exit(EXIT.done);
