/** The program of a lane's thread in a session's child process. */

import { parentPort, workerData } from 'node:worker_threads';
import { assert } from '../base/index.ts';
import { isLaneThreadData, runLaneThread } from '../backup/index.ts';

const data: unknown = workerData;
assert(parentPort !== null && isLaneThreadData(data), 'A lane is started as a thread, with its data');
await runLaneThread(parentPort, data);
